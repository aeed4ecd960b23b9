//! Transactions in flight on port 53.
