"""The behaviours, by what they concern; each module registers its own when it is imported."""
