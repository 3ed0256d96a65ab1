// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// right is to do something to a kind of resource, in one namespace or in none.
type right struct{ verb, group, resource, namespace string }

func (r right) String() string {
	return fmt.Sprintf("%s %s in API group %q, namespace %q", r.verb, r.resource, r.group, r.namespace)
}

// agentsRights are all that the manifests give an agent.
func agentsRights() []right {
	return []right{
		{verb: "get", resource: "nodes"}, {verb: "list", resource: "nodes"}, {verb: "watch", resource: "nodes"},
		{verb: "patch", resource: "nodes/status"},
		{verb: "create", resource: "events", namespace: "default"}, {verb: "patch", resource: "events", namespace: "default"},
	}
}

// everyonesRights are what the server's own roles give to whoever is
// authenticated (system:basic-user), to ask who one is and what one may, and to
// every ServiceAccount (system:cluster-trust-bundle-discovery), to read CAs.
func everyonesRights() []right {
	return []right{
		{verb: "create", group: "authentication.k8s.io", resource: "selfsubjectreviews"},
		{verb: "create", group: "authorization.k8s.io", resource: "selfsubjectaccessreviews"},
		{verb: "create", group: "authorization.k8s.io", resource: "selfsubjectrulesreviews"},
		{verb: "get", group: "certificates.k8s.io", resource: "clustertrustbundles"},
		{verb: "list", group: "certificates.k8s.io", resource: "clustertrustbundles"},
		{verb: "watch", group: "certificates.k8s.io", resource: "clustertrustbundles"},
	}
}

// methods are the requests that stand for each verb.
func methods() map[string]string {
	return map[string]string{
		"get": http.MethodGet, "list": http.MethodGet, "watch": http.MethodGet, "create": http.MethodPost, "update": http.MethodPut,
		"patch": http.MethodPatch, "delete": http.MethodDelete, "deletecollection": http.MethodDelete,
	}
}

// kind is a resource, or a subresource with a slash, where the server has it.
type kind struct {
	root       string // /api/v1, /apis/GROUP/VERSION
	group      string
	resource   string
	namespaced bool
}

// kinds are all that the server lists in one version of each group that has it.
func (c *cluster) kinds() []kind {
	c.Helper()
	get := func(path string, into any) {
		c.Helper()
		raw, err := c.c.Get().AbsPath(path).DoRaw(c.Context())
		c.check(err)
		c.check(json.Unmarshal(raw, into))
	}
	var groups metav1.APIGroupList
	get("/apis", &groups)
	roots := map[string]string{"/api/v1": ""}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			roots["/apis/"+v.GroupVersion] = g.Name
		}
	}
	var out []kind
	seen := map[[2]string]bool{}
	for root, group := range roots {
		var list metav1.APIResourceList
		get(root, &list)
		for _, r := range list.APIResources {
			if id := [2]string{group, r.Name}; !seen[id] {
				seen[id] = true
				out = append(out, kind{root, group, r.Name, r.Namespaced})
			}
		}
	}
	return out
}

// request returns the path to do verb to k in a namespace; none if there is no
// such request.
func (k kind) request(verb, namespace string) (path string, ok bool) {
	resource, sub, isSub := strings.Cut(k.resource, "/")
	collection := verb == "list" || verb == "watch" || verb == "deletecollection"
	if isSub && collection {
		return "", false
	}
	path = k.root
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	path += "/" + resource
	if isSub {
		return path + "/a/" + sub, true
	}
	switch {
	case verb == "watch":
		path += "?watch=true&timeoutSeconds=1"
	case !collection && verb != "create":
		path += "/a"
	}
	return path, true
}

// matrix makes a real request for every verb on every resource and subresource
// that the server has, in the agent's own namespace, in that of its Events and
// across all. What is not listed must be refused by the authorizer, and what is
// must not.
func matrix(c *cluster) {
	listed := append(agentsRights(), everyonesRights()...)
	asked, unmet := 0, slices.Clone(listed)
	for _, k := range c.kinds() {
		for verb, method := range methods() {
			namespaces := []string{""}
			if k.namespaced {
				namespaces = []string{"default", "kube-system"}
				if verb == "list" || verb == "watch" {
					namespaces = append(namespaces, "")
				}
			}
			for _, ns := range namespaces {
				path, ok := k.request(verb, ns)
				if !ok {
					continue
				}
				asked++
				r := right{verb, k.group, k.resource, ns}
				content := "application/json"
				if verb == "patch" {
					content = "application/merge-patch+json"
				}
				code, message := c.ask(c.tokens["a"], method, path, content, "{}")
				words := fmt.Sprintf("cannot %s resource %q in API group %q", verb, k.resource, k.group)
				refused := code == http.StatusForbidden && strings.Contains(message, words)
				if want := !slices.Contains(listed, r); refused != want {
					c.Errorf("%s: %d %s; want it refused: %v", r, code, message, want)
				}
				unmet = slices.DeleteFunc(unmet, func(l right) bool { return l == r })
			}
		}
	}
	if len(unmet) > 0 || asked < 1000 {
		c.Errorf("%d requests, without %v: the matrix has holes", asked, unmet)
	}
	c.Logf("%d requests, %d of them allowed", asked, len(listed))
	for _, path := range []string{"/metrics", "/logs/", "/debug/pprof/", "/configz", "/statusz", "/flagz", "/openid/v1/jwks/x"} {
		if code, message := c.ask(c.tokens["a"], http.MethodGet, path, "", ""); code != http.StatusForbidden {
			c.Errorf("%s: %d %s", path, code, message)
		}
	}
}

// rules asks the server for all rules that apply to an agent, which finds what
// has no request of its own and what no resource is there for yet, and asks of
// some such rights by name.
func rules(c *cluster) {
	for _, ns := range []string{"default", "kube-system", "kube-public"} {
		var want []string
		for _, r := range append(agentsRights(), everyonesRights()...) {
			if r.namespace == "" || r.namespace == ns {
				want = append(want, fmt.Sprintf("%s %s/%s []", r.verb, r.group, r.resource))
			}
		}
		review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: ns}}
		c.review("selfsubjectrulesreviews", review)
		var got []string
		for _, r := range review.Status.ResourceRules {
			for _, verb := range r.Verbs {
				for _, group := range r.APIGroups {
					for _, resource := range r.Resources {
						got = append(got, fmt.Sprintf("%s %s/%s %v", verb, group, resource, r.ResourceNames))
					}
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			c.Errorf("in %s: rules\n%q, want\n%q", ns, got, want)
		}
		for _, r := range review.Status.NonResourceRules {
			if !slices.Equal(r.Verbs, []string{"get"}) || slices.Contains(r.NonResourceURLs, "*") {
				c.Errorf("in %s: %v on %v", ns, r.Verbs, r.NonResourceURLs)
			}
		}
	}
	for _, r := range []right{
		{verb: "*", group: "*", resource: "*"},
		{verb: "impersonate", resource: "users"}, {verb: "impersonate", resource: "groups"}, {verb: "impersonate", resource: "serviceaccounts", namespace: "kube-system"},
		{verb: "escalate", group: "rbac.authorization.k8s.io", resource: "clusterroles"}, {verb: "bind", group: "rbac.authorization.k8s.io", resource: "clusterroles"},
		{verb: "approve", group: "certificates.k8s.io", resource: "signers"}, {verb: "sign", group: "certificates.k8s.io", resource: "signers"},
		{verb: "attest", group: "certificates.k8s.io", resource: "signers"}, {verb: "proxy", resource: "nodes"}, {verb: "use", group: "policy", resource: "podsecuritypolicies"},
	} {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: r.namespace, Verb: r.verb, Group: r.group, Resource: r.resource}}}
		c.review("selfsubjectaccessreviews", review)
		if review.Status.Allowed {
			c.Errorf("%s is allowed: %s", r, review.Status.Reason)
		}
	}
}

// review asks as the agent on a.
func (c *cluster) review(resource string, obj any) {
	c.Helper()
	body, err := json.Marshal(obj)
	c.check(err)
	raw, err := c.agent.Post().AbsPath("/apis/authorization.k8s.io/v1/"+resource).SetHeader("Content-Type", "application/json").Body(body).DoRaw(c.Context())
	c.check(err)
	c.check(json.Unmarshal(raw, obj))
}
