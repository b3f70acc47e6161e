"""Airflow wiring: schedules, order and retries, nothing else."""
