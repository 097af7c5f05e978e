"""Starting, signalling and ending processes of this machine; torch-free."""
