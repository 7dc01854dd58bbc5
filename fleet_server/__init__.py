"""The server of one district: ingest, ledger, demand, planning, work orders, alerts, reports, web and jobs."""
