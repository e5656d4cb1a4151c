"""One graph rewrite a file; the file's name is the pass's name."""
