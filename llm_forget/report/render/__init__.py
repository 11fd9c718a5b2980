"""Documents as HTML, Markdown and charts."""
