//! The Kubernetes collector: conversion of objects, and watches against an API server that fails on purpose.

mod conversion;
mod fixtures;
mod server;
mod watching;
