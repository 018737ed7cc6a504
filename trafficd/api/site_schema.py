"""The API's models of sites: public names and their certificates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from proxy.certificates import check_file_path
from proxy.site_config import parse_host
from trafficd.api.schema import Answer, Request
from trafficd.config.values import Name

Host = Annotated[str, AfterValidator(parse_host)]
PemFile = Annotated[str, AfterValidator(check_file_path)]


class AddSite(Request):
    name: Host
    service: Name
    certificate: PemFile | None = Field(
        default=None, description="absolute path of a PEM file: the chain, its own first"
    )
    key: PemFile | None = Field(default=None, description="absolute path of the PEM file with its key")

    @model_validator(mode="after")
    def _a_pair(self) -> AddSite:
        if (self.certificate is None) is not (self.key is None):
            raise ValueError("give certificate and key, or neither: then Caddy gets a certificate itself")
        return self


class CertificateView(Answer):
    place: str = Field(description="the file, or that it is in Caddy's configuration")
    subject: str | None = Field(description="null: it cannot be read; `note` says why")
    issuer: str | None
    not_after: float | None = Field(description="seconds since the epoch")
    names: list[str]


class SiteView(Answer):
    name: str | None = Field(description="null: whatever name the client asks for")
    server: str
    listen: list[str]
    service: str | None = Field(description="the service of ours that answers")
    answers: list[str] = Field(description="a service, addresses of upstreams, or Caddy's name of another handler")
    managed_by: Literal["site", "service", "other"] = Field(
        description="site: added here; service: named in the configuration; other: somebody else's"
    )
    tls: Literal["off", "automatic", "internal", "own", "unmanaged"]
    certificate: CertificateView | None
    note: str


class SiteList(Answer):
    sites: list[SiteView]


class SiteChange(Answer):
    name: str
    changed: bool
    changes: int = Field(description="changes of Caddy's configuration that it took")
    cost: str | None = Field(description="what each of them does to open connections; null where there was none")
    warnings: list[str]
