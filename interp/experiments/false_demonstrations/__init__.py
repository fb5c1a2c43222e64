"""Is a model that is shown false demonstrations right in its middle layers, and which late heads override it?"""
