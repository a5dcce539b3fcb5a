"""The steps between versions of the tables; `taciturn.server.schema.versions` applies them."""
