"""Adapters that make l2o's rules usable inside other libraries; each needs its library only when it is imported."""
