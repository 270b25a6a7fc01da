"""git shows models: a diff driver for `git diff`, text for `git log -p` and `git show`, models staged for a commit."""
