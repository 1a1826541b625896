"""The three TLS files."""

from __future__ import annotations

from premoe_local.console import date
from premoe_local.doctor.facts.tls import Certificate
from premoe_local.doctor.finding import Finding, ok

SOON_DAYS = 7.0
"""As the alert PremoeCertificateExpires."""
_DAY_S = 86_400.0
_CHECK = "TLS files"


def judge(certificate: Certificate, now: float) -> Finding:
    """``now``: seconds since 1970."""
    if certificate.fault:
        return Finding(
            _CHECK,
            "error",
            certificate.fault,
            "no process of the mesh talks to one with these files; no factor: it is a failure",
            "issue the pair anew from the authority that the others trust (docs/install.md)",
        )
    ends = [end for end in (certificate.ends, certificate.authority_ends) if end is not None]
    if not ends:
        return ok(_CHECK, f"{certificate.path} and its key fit its authority; when they end is not said")
    days = (min(ends) - now) / _DAY_S
    whose = "its authority" if min(ends) != certificate.ends else certificate.path
    found = f"{whose} ends in {days:.1f} days, {date(min(ends))}"
    if days >= SOON_DAYS:
        return ok(_CHECK, found)
    return Finding(
        _CHECK,
        "warning",
        found,
        "from then on nobody who checks certificates answers; no factor: it is a failure",
        "renew it: running processes take the new files up by themselves",
        "docs/operate.md, PremoeCertificateExpires",
    )
