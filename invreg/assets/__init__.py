"""Images that ship with the package, and the one function that reads each."""
