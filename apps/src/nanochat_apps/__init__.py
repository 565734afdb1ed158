"""The nanochat programs, one module per stage; the only place that joins the libraries."""
