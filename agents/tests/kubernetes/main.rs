//! The Kubernetes collector: conversion of objects, and watches against an API server that fails on purpose.

#[path = "../support/mod.rs"]
mod agent;
mod arbitrary;
mod conversion;
mod fixtures;
mod lasting;
mod leading;
mod listing;
mod lists;
mod missed;
mod protocol;
mod rights;
mod server;
mod waiting;
mod watching;
