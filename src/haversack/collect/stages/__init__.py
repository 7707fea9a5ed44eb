"""The stages of the pipeline, one a file, named for their place in it."""
