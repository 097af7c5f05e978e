"""GeneGAN: an attribute as an object that can be taken from one face and given to another."""
