"""The paper's theorems as parameters of the model that trains (section 5 and its appendix)."""
