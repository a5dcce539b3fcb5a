"""Job files of Axolotl and LLaMA-Factory as job files of taciturn: `taciturn import-config`."""
