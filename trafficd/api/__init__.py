"""The HTTP API: schema first. The models in `schema` validate requests and make the OpenAPI document."""
