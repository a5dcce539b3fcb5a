"""OpenAI's fine-tuning API over the gateway's own data sets and jobs: it translates, no more."""
