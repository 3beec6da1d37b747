"""Readers against bytes that nobody should trust; docs/security.md says how to run and how to add one."""
