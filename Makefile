# See README.md. Every target works from a fresh checkout and is quick when there is nothing to do.
