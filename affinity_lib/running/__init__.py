"""Running the notebooks: plan, execution, manifest, shards and sweeps."""
