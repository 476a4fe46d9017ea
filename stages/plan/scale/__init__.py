"""What every boundary costs a model of which nothing but the configuration is here: ``python -m stages.plan scale``."""
