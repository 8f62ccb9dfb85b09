"""One module per official dataset: its files to this project's layout."""
