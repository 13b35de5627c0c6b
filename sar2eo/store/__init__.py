"""Files that survive a crash, and files elsewhere: HTTP and S3."""
