"""Jobs as runs of an MLflow server that whoever runs the gateway names: public values, and values
that a budget has paid for."""
