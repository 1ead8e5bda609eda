"""The output of `export`: folders of files, and samples drawn again."""
