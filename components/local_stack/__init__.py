"""Servers on loopback: Airflow, PostgreSQL, S3 and MLflow, each a process of this machine."""
