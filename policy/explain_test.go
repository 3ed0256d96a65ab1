// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"testing"
)

// Explanations name the policy and the rule, or what comes close and what is
// missing.
func TestExplain(t *testing.T) {
	policies := policiesIn(t, "examples.yaml")
	for _, tt := range []struct {
		policies []string
		src, dst string
		proto    uint8
		port     uint16
		want     string
	}{
		{[]string{"allow-frontend-to-backend"}, "frontend", "backend", TCP, 80, `ALLOWED: pod app/frontend (10.42.0.3) to pod app/backend (10.42.0.4), TCP port 80
egress: allowed: no policy of app selects app/frontend
ingress: allowed by app/allow-frontend-to-backend, rule ingress[0]
`},
		{[]string{"allow-frontend-to-backend"}, "frontend", "backend", TCP, 81, `DENIED: pod app/frontend (10.42.0.3) to pod app/backend (10.42.0.4), TCP port 81
egress: allowed: no policy of app selects app/frontend
ingress: denied: app/backend is isolated by app/allow-frontend-to-backend, and no rule of theirs lets this pass
  app/allow-frontend-to-backend, rule ingress[0] is for this peer, but for other ports: TCP port 80
  to allow it: a policy in namespace app that selects backend, with from: podSelector {app: frontend}, ports: TCP port 81
`},
		{[]string{"default-deny-all", "layered-policy"}, "api", "dns", UDP, 53, `DENIED: pod app/api (10.42.0.5) to pod kube-system/dns (10.42.0.7), UDP port 53
egress: denied: app/api is isolated by app/default-deny-all, app/layered-policy, and no rule of theirs lets this pass
  to allow it: a policy in namespace app that selects api, with to: namespaceSelector {kubernetes.io/metadata.name: kube-system}, podSelector {}, ports: UDP port 53
ingress: allowed: no policy of kube-system selects kube-system/dns
`},
		{[]string{"allow-external"}, "barred", "web", TCP, 80, `DENIED: 172.17.1.5 to pod app/web (10.42.0.2), TCP port 80
egress: not checked: 172.17.1.5 is no pod
ingress: denied: app/web is isolated by app/allow-external, and no rule of theirs lets this pass
  app/allow-external, rule ingress[0] lets TCP port 80 pass, but not from here
  to allow it: a policy in namespace app that selects web, with from: ipBlock 172.17.1.5/32, ports: TCP port 80
`},
		{[]string{"default-deny-all"}, "web", "web", 1, 0, `ALLOWED: pod app/web (10.42.0.2) to pod app/web (10.42.0.2), protocol 1
egress: allowed: a pod reaches itself
ingress: allowed: a pod reaches itself
`},
	} {
		c, at := town()
		for _, name := range tt.policies {
			c.Policies = append(c.Policies, policies[name])
		}
		if got := c.Explain(Packet{Src: at[tt.src], Dst: at[tt.dst], Proto: tt.proto, Port: tt.port}).String(); got != tt.want {
			t.Errorf("got\n%swant\n%s", got, tt.want)
		}
	}
}

func TestExplainTooLarge(t *testing.T) {
	c, at := town()
	c.Policies = append(c.Policies, policiesIn(t, "examples.yaml")["allow-frontend-to-backend"])
	e := c.Explain(Packet{Src: at["frontend"], Dst: at["backend"], Proto: TCP, Port: 80}).Without(func(p *Pod) bool { return p.Name == "backend" })
	want := `DENIED: pod app/frontend (10.42.0.3) to pod app/backend (10.42.0.4), TCP port 80
egress: allowed: no policy of app selects app/frontend
ingress: denied: app/allow-frontend-to-backend, rule ingress[0] would let it pass, but the policies of namespace app come to more than the node's table has room for (%d rows for all)
`
	want = fmt.Sprintf(want, MaxRows)
	if got := e.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := e.Denial(Ingress); got != "pod app/frontend (10.42.0.3) to pod app/backend (10.42.0.4), TCP port 80: the policies of namespace app come to more than the node's table has room for ("+fmt.Sprint(MaxRows)+" rows for all)" {
		t.Error(got)
	}
}
