"""Models of other projects: reading theirs, writing bundles that they can read, and comparing both."""
