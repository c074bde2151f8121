"""One file per runtime. Adding a file here registers it; there is no list to edit."""
