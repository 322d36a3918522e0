"""Defences at inference time: what a model is asked is changed, or it is asked again. No weights, no states, no fit."""
