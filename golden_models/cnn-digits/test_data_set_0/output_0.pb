
BlogitsJ(бюD0ю╡eKAD3ю V√ю╦╛уюю╡йюbIющp┤юФа