"""The finance service with one endpoint more that does nothing, to be served beside `score` by fraud_service.py.

`noop` takes the same transaction through the same layers (HTTP, limits, parsing, checking, answer): what scoring adds can be
read off.
"""

from __future__ import annotations

import bentoml

from core.serving.http import GuardedService
from verticals.finance.fraud.requests import Transaction
from verticals.finance.service import Finance, Noted


class WithNoop(Finance):
    @bentoml.api  # type: ignore[untyped-decorator]
    async def noop(self, transaction: Transaction, /) -> Noted:
        """Answers without doing anything."""
        return Noted(transaction_id=transaction.transaction_id, changed=False)


svc = bentoml.service(
    service_class=GuardedService, name="finance_noop", workers=1, traffic={"timeout": 120, "max_concurrency": 512}
)(WithNoop)
