"""CBN as the paper writes it: past weights kept, derivatives by autograd, nothing fused. For tests."""

import torch

# Convolutions of every kind, and a Linear layer
KINDS = {
    '1x1': dict(kernel_size=1),
    '3x3': dict(kernel_size=3, padding=1),
    'unpadded': dict(kernel_size=3),
    'strided': dict(kernel_size=3, stride=2, padding=1),
    'strided 1x1': dict(kernel_size=1, stride=2),
    'dilated': dict(kernel_size=3, padding=2, dilation=2),
    'oblong': dict(kernel_size=(1, 5), stride=(2, 3), padding=(0, 2), dilation=(1, 2)),
    'grouped': dict(kernel_size=3, padding=1, groups=2),
    'depthwise': dict(kernel_size=3, stride=2, padding=1, groups=4),
    'wide padding': dict(kernel_size=3, padding=3),
    'linear': None,
}


class PlainCBN:
    def __init__(self, buffer_num=3, rho=1.0, compensation='taylor', eps=1e-5, momentum=0.1):
        self.k, self.rho, self.form = buffer_num + 1, rho, compensation
        self.eps, self.momentum = eps, momentum
        self.past = []  # mu, nu, dmu, dnu, weight; newest first
        self.running_mean, self.running_var = 0.0, 1.0

    def __call__(self, y, w, gamma, beta):
        dims = [d for d in range(y.dim()) if d != 1]
        mu, nu = y.mean(dims), (y * y).mean(dims)
        (dmu,) = torch.autograd.grad(mu.sum(), w, retain_graph=True)
        (dnu,) = torch.autograd.grad(nu.sum(), w, retain_graph=True)
        mus, nus = [mu], [nu]
        for p_mu, p_nu, p_dmu, p_dnu, p_w in self.past:
            step = (w - p_w).detach()
            change_mu = (p_dmu * step).flatten(1).sum(1)
            change_nu = (p_dnu * step).flatten(1).sum(1)
            mus.append(p_mu + self.rho * change_mu)
            if self.form == 'taylor':
                nus.append(p_nu + self.rho * change_nu)
            else:
                nus.append(p_nu * (1 + self.rho * change_nu / (2 * p_nu)) ** 2)
        self.mus, self.nus = torch.stack(mus).detach(), torch.stack(nus).detach()
        mean = sum(mus) / len(mus)
        nus[1:] = [torch.maximum(n, m * m) for n, m in zip(nus[1:], mus[1:])]
        var = sum(nus) / len(nus) - mean * mean
        self.mean, self.var, self.dmu, self.dnu = mean.detach(), var.detach(), dmu, dnu
        self.past = [(mu.detach(), nu.detach(), dmu, dnu, w.detach().clone()), *self.past][: self.k - 1]
        count = y.numel() / y.shape[1]
        unbiased = (nu - mu * mu).detach() * count / (count - 1)
        self.running_mean = self.running_mean * (1 - self.momentum) + mu.detach() * self.momentum
        self.running_var = self.running_var * (1 - self.momentum) + unbiased * self.momentum
        shape = (1, -1) + (1,) * (y.dim() - 2)
        y_hat = (y - mean.view(shape)) / torch.sqrt(var + self.eps).view(shape)
        return y_hat * gamma.view(shape) + beta.view(shape)
