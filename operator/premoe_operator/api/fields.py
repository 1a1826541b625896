"""What classes of the API are made of: texts with a form, and the base of all parts."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_PORT = r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
_SUBDOMAIN = rf"{DNS_LABEL}(\.{DNS_LABEL})*"

DnsLabel = Annotated[str, Field(max_length=63, pattern=rf"^{DNS_LABEL}$")]
DnsName = Annotated[str, Field(max_length=253, pattern=rf"^{_SUBDOMAIN}$")]
OptionalDnsName = Annotated[str, Field(max_length=253, pattern=rf"^({_SUBDOMAIN})?$")]
BudgetText = Annotated[str, Field(max_length=12, pattern=r"^[1-9][0-9]{0,4}/[1-9][0-9]{0,4}$")]
Quantity = Annotated[str, Field(max_length=32, pattern=r"^[0-9]{1,15}(\.[0-9]{1,3})?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
"""An amount of a resource as Kubernetes writes it."""
Size = Annotated[str, Field(max_length=32, pattern=r"^[1-9][0-9]{0,11}(\.[0-9]{1,3})?(k|Ki|M|Mi|G|Gi|T|Ti)?$")]
"""Bytes as Kubernetes writes them, more than none."""
Image = Annotated[str, Field(max_length=512, pattern=r"^([a-z0-9][-a-zA-Z0-9._/:@]*)?$")]
Ratio = Annotated[str, Field(max_length=8, pattern=r"^(0(\.[0-9]+)?|1(\.0+)?)$")]
OtlpEndpoint = Annotated[
    str, Field(max_length=512, pattern=rf"^(https?://[A-Za-z0-9][-A-Za-z0-9.]*{_PORT}(/[!-~]*)?)?$")
]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
LabelMap = Annotated[dict[str, LabelValue], Field(max_length=32)]
AnnotationMap = Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)]


class Part(BaseModel):
    """A part of the resource: camelCase outside, snake_case inside, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )
