"""Images, manifests and packed files, and how batches are made from them."""
