"""What makes `s3://` mean the tests' own service."""


def s3_environment(endpoint: str) -> dict[str, str]:
    """Variables for a service at this URL."""
    names = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
    return {f"AWS_{name}": value for name, value in names.items()} | {"AWS_DEFAULT_REGION": "us-east-1"}
