"""What the documentation site takes from the code: references, written anew at every build."""
