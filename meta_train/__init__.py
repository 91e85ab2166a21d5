"""Learn a rule and judge it; the only package that changes a rule's weights. From Python: `meta_train.api.train`."""
