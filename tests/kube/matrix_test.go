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

// right is to do something to a kind of resource, in one namespace or in none,
// and to all of it or to what has one name.
type right struct{ verb, group, resource, namespace, name string }

func (r right) String() string {
	return fmt.Sprintf("%s %s %s in API group %q, namespace %q", r.verb, r.resource, r.name, r.group, r.namespace)
}

// in reports whether r is among listed, by its name or for all names, in its
// namespace or in all.
func (r right) in(listed []right) bool {
	return slices.ContainsFunc(listed, func(l right) bool {
		return l.verb == r.verb && l.group == r.group && l.resource == r.resource &&
			(l.namespace == "" || l.namespace == r.namespace) && (l.name == "" || l.name == r.name)
	})
}

// agentsRights are all that the manifests give an agent. With flannel's names it
// enforces no policies.
func agentsRights(flannel bool) []right {
	out := []right{
		{verb: "get", resource: "nodes"}, {verb: "list", resource: "nodes"}, {verb: "watch", resource: "nodes"},
		{verb: "patch", resource: "nodes/status"},
		{verb: "create", resource: "events", namespace: "default"}, {verb: "patch", resource: "events", namespace: "default"},
		// Where the pod networks stand in clusters that kubeadm has made.
		{verb: "get", resource: "configmaps", namespace: "kube-system", name: "kubeadm-config"},
		{verb: "get", resource: "configmaps", namespace: "kube-system", name: "kube-proxy"},
	}
	if flannel {
		return out
	}
	// What NetworkPolicies say, and of whom.
	out = append(out, right{verb: "get", resource: "pods"}) // one that starts
	for _, verb := range []string{"list", "watch"} {
		out = append(out, right{verb: verb, resource: "pods"}, right{verb: verb, resource: "namespaces"},
			right{verb: verb, group: "networking.k8s.io", resource: "networkpolicies"})
	}
	return out
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

// stranger is the name of what no right is about.
const stranger = "a"

// names are those by which a resource is asked for: a stranger's, and those that
// have a right of their own.
func (k kind) names(listed []right) []string {
	out := []string{stranger}
	for _, r := range listed {
		if r.group == k.group && r.resource == k.resource && r.name != "" {
			out = append(out, r.name)
		}
	}
	return out
}

// request returns the path of what r says; none if there is no such request.
func (k kind) request(r right) (path string, ok bool) {
	resource, sub, isSub := strings.Cut(k.resource, "/")
	collection := r.verb == "list" || r.verb == "watch" || r.verb == "deletecollection" || r.verb == "create" && !isSub
	if isSub && collection || collection && r.name != stranger || k.namespaced && r.namespace == "" && r.verb != "list" && r.verb != "watch" {
		return "", false
	}
	path = k.root
	if r.namespace != "" {
		path += "/namespaces/" + r.namespace
	}
	path += "/" + resource
	switch {
	case isSub:
		path += "/" + r.name + "/" + sub
	case r.verb == "watch":
		path += "?watch=true&timeoutSeconds=1"
	case !collection:
		path += "/" + r.name
	}
	return path, true
}

// matrix makes a real request for every verb on every resource and subresource
// that the server has, in the agent's own namespace, in that of its Events and
// across all. What is not listed must be refused by the authorizer, and what is
// must not.
func matrix(c *cluster) {
	listed := append(agentsRights(c.flannel), everyonesRights()...)
	asked, unmet := 0, slices.Clone(listed)
	for _, k := range c.kinds() {
		namespaces := []string{""}
		if k.namespaced {
			namespaces = []string{"default", "kube-system", ""}
		}
		for verb := range methods() {
			for _, ns := range namespaces {
				for _, name := range k.names(listed) {
					r := right{verb, k.group, k.resource, ns, name}
					if c.tryRight(k, r, r.in(listed)) {
						asked++
						unmet = slices.DeleteFunc(unmet, func(l right) bool { return r.in([]right{l}) })
					}
				}
			}
		}
	}
	if len(unmet) > 0 || asked < 1000 {
		c.Errorf("%d requests, without %v: the matrix has holes", asked, unmet)
	}
	c.Logf("%d requests", asked)
	for _, path := range []string{"/metrics", "/logs/", "/debug/pprof/", "/configz", "/statusz", "/flagz", "/openid/v1/jwks/x"} {
		if code, message := c.ask(c.tokens["a"], http.MethodGet, path, "", ""); code != http.StatusForbidden {
			c.Errorf("%s: %d %s", path, code, message)
		}
	}
}

// tryRight makes the request for r, if there is one, as the agent on a.
func (c *cluster) tryRight(k kind, r right, allowed bool) (asked bool) {
	c.Helper()
	path, ok := k.request(r)
	if !ok {
		return false
	}
	content := "application/json"
	if r.verb == "patch" {
		content = "application/merge-patch+json"
	}
	code, message := c.ask(c.tokens["a"], methods()[r.verb], path, content, "{}")
	words := fmt.Sprintf("cannot %s resource %q in API group %q", r.verb, k.resource, k.group)
	if refused := code == http.StatusForbidden && strings.Contains(message, words); refused == allowed {
		c.Errorf("%s: %d %s; want it allowed: %v", r, code, message, allowed)
	}
	return true
}

// rules asks the server for all rules that apply to an agent, which finds what
// has no request of its own and what no resource is there for yet, and asks of
// some such rights by name.
func rules(c *cluster) {
	for _, ns := range []string{"default", "kube-system", "kube-public"} {
		var want []string
		for _, r := range append(agentsRights(c.flannel), everyonesRights()...) {
			if r.namespace == "" || r.namespace == ns {
				want = append(want, fmt.Sprintf("%s %s/%s [%s]", r.verb, r.group, r.resource, r.name))
			}
		}
		review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: ns}}
		c.review("selfsubjectrulesreviews", review)
		got := texts(review.Status.ResourceRules)
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

// texts has one line for each right that rules give.
func texts(rules []authorizationv1.ResourceRule) []string {
	var out []string
	for _, r := range rules {
		names := r.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, verb := range r.Verbs {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, name := range names {
						out = append(out, fmt.Sprintf("%s %s/%s [%s]", verb, group, resource, name))
					}
				}
			}
		}
	}
	return out
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
