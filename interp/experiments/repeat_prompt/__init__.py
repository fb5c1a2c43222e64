"""Can the model repeat this token after being shown how twenty times? The article's prompt, for any pool."""
