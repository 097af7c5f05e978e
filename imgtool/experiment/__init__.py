"""One experiment's directory: what lies in it, who may write it, what may be deleted."""
