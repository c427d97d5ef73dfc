"""What is for the tests of programs that use the package."""
