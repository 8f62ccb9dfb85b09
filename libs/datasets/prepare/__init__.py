"""One module per official data set: its files to this project's layout."""
