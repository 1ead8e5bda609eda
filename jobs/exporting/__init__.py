"""What `export` writes: folders of files, and samples drawn again."""
