"""Is a deficit found where no token can be under-trained? A lexinvariant model, over many drawn tables of rows."""
