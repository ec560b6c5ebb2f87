"""Data sets of unsupervised domain adaptation: train_x from the source domains, train_u and test from the targets."""
# ruff: noqa: F401 (offered from here)

from .domainnet import DomainNet
from .mini_domainnet import miniDomainNet
from .office31 import Office31
from .office_home import OfficeHome
from .visda17 import VisDA17
