def render(record):
    return "<html></html>"
